-- ARGV 5-: `k` and key; answer.
local state = redis.call('HGET', KEYS[4], ARGV[5])
if not state then return done(0) end
if string.sub(state, 1, 1) == 'a' then return done(string.match(state, '^a(%S+) ') == op and 1 or 0) end
local question = string.match(state, '^q%S+ (.*)$')
redis.call('LREM', KEYS[2], 1, question)
redis.call('LREM', KEYS[3], 1, question)
redis.call('HSET', KEYS[4], ARGV[5], 'a' .. op .. ' ' .. ARGV[6])
tell('a')
return done(1)
