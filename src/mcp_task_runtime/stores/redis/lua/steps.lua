return {'ok', redis.call('HGETALL', KEYS[2])}
