-- ARGV 5: `k` and key.
return done(redis.call('HGET', KEYS[4], ARGV[5]))
