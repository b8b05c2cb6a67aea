return done(redis.call('LINDEX', KEYS[2], 0))
