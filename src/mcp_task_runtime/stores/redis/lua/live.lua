-- How many live tasks an owner has. KEYS: its index. ARGV: now (empty for the server's time).
return redis.call('ZCOUNT', KEYS[1], '(' .. time(ARGV[1]), 'inf')
