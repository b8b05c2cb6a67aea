return {'ok', created_at, redis.call('LRANGE', KEYS[2], 0, -1)}
