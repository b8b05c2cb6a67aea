local message = redis.call('HGET', KEYS[5], op)
if message then return done(message) end
message = redis.call('LPOP', KEYS[2])
if message then
    redis.call('HSET', KEYS[5], op, message)
    redis.call('PEXPIRE', KEYS[5], 60000)
end
return done(message)
