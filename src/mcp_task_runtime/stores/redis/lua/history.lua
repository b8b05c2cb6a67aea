return {'ok', head.created_at, redis.call('LRANGE', KEYS[7], 0, -1)}
