return done(redis.call('LRANGE', KEYS[2], 0, -1))
