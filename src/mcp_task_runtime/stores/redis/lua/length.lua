return done(redis.call('LLEN', KEYS[2]))
