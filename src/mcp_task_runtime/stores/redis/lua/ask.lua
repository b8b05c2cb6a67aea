-- ARGV 5-: statuses that may become input_required; `+` and worker, or empty; attempt; `k` and key; question; text of
-- the event.
local state = redis.call('HGET', KEYS[4], ARGV[8])
if state and string.match(state, '^q(%S+) ') == op then return {'ok', all()} end
if not is_in(ARGV[5]) then return {'refused', head.status} end
if is_fenced(ARGV[6], ARGV[7]) then return {'lost'} end
if state then return {'known'} end
redis.call('HSET', KEYS[4], ARGV[8], 'q' .. op .. ' ' .. ARGV[9])
redis.call('RPUSH', KEYS[3], ARGV[9])
redis.call('RPUSH', KEYS[2], ARGV[9])
fit(2, 4)
redis.call('HSET', KEYS[1], 'op', op, 'revision', digits(head.revision + 1),
    'status', 'input_required', 'last_updated_at', later(now, head.last_updated_at))
note('asked', ARGV[10])
if head.status ~= 'input_required' then refile('input_required') end
tell('t')
tell('m')
return {'ok', all()}
