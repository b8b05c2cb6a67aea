-- ARGV 5-: milliseconds to keep a mailbox without a task; `k` and key, or empty; message.
if ARGV[6] ~= '' then
    local state = redis.call('HGET', KEYS[4], ARGV[6])
    if state then return done(string.match(state, '^q(%S+) ') == op and 1 or 0) end
    redis.call('HSET', KEYS[4], ARGV[6], 'q' .. op .. ' ' .. ARGV[7])
    redis.call('RPUSH', KEYS[3], ARGV[7])
end
redis.call('RPUSH', KEYS[2], ARGV[7])
fit(2, 4, ARGV[5])
tell('m')
return done(1)
