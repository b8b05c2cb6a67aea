return {'ok', record(), redis.call('LRANGE', KEYS[2], 0, -1)}
