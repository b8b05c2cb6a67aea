-- ARGV 2: `k` and key.
return done(redis.call('HGET', KEYS[2], ARGV[2]))
