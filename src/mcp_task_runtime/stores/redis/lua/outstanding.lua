return done(redis.call('LRANGE', KEYS[3], 0, -1))
