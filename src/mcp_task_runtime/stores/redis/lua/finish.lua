-- ARGV 5-: statuses that may end so; status; `+` and payload, or empty; `+` and message, or empty; `+` and worker, or
-- empty; attempt; text of the event; 1 if the task completed with an error.
if head.op == op then return {'ok', all()} end
if not is_in(ARGV[5]) then return {'refused', head.status} end
if is_fenced(ARGV[9], ARGV[10]) then return {'lost'} end
local status, ended = ARGV[6], later(now, head.last_updated_at)
redis.call('HSET', KEYS[1], 'op', op, 'revision', digits(head.revision + 1),
    'status', status, 'last_updated_at', ended)
if ARGV[7] ~= '' then redis.call('HSET', KEYS[1], 'outcome', string.sub(ARGV[7], 2)) end
if ARGV[8] ~= '' then
    local message = string.sub(ARGV[8], 2)
    redis.call('HSET', KEYS[1], 'status_message', message, 'outcome_message', message)
elseif status == 'completed' then
    redis.call('HDEL', KEYS[1], 'status_message')
end
if head.worker then
    redis.call('HDEL', KEYS[1], 'worker', 'lease_expires_at', 'attempt', 'handovers')
    unwait()
    unlease()
end
note(status, ARGV[8] ~= '' and ARGV[11] or nil)
if head.ttl_ms then
    local ttl = math.ceil((ended - head.created_at) / 1000) + head.retention_ms
    if ttl > tonumber(head.ttl_ms) then
        redis.call('HSET', KEYS[1], 'ttl_ms', digits(ttl))
        keep(math.ceil((head.created_at - now) / 1000) + ttl + margin)
    end
end
redis.call('DEL', KEYS[8], unpack(KEYS, 2, 6))
refile(status, ARGV[12] == '1')
tell_end()
return {'ok', all()}
