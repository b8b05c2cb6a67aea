-- ARGV 5-: statuses that may be updated; status, or empty; `+` and message, or empty; progress, or empty; TTL, or
-- empty; revision, or empty; `+` and worker, or empty; attempt; text of the event.
if head.op == op then return {'ok', all()} end
if not is_in(ARGV[5]) then return {'refused', head.status} end
if is_fenced(ARGV[11], ARGV[12]) then return {'lost'} end
if ARGV[10] ~= '' and ARGV[10] ~= head.revision then return {'conflict', head.revision} end
local status = ARGV[6] ~= '' and ARGV[6] or head.status
redis.call('HSET', KEYS[1], 'op', op, 'revision', digits(head.revision + 1),
    'status', status, 'last_updated_at', later(now, head.last_updated_at))
if ARGV[7] ~= '' then redis.call('HSET', KEYS[1], 'status_message', string.sub(ARGV[7], 2)) end
if ARGV[8] ~= '' then redis.call('HSET', KEYS[1], 'progress', ARGV[8]) end
if ARGV[9] ~= '' then
    redis.call('HSET', KEYS[1], 'ttl_ms', ARGV[9])
    head.ttl_ms = ARGV[9]
    keep(math.max(math.ceil((head.created_at - now) / 1000) + ARGV[9] + margin, 1))
    local at_most = ARGV[9] + head.retention_ms + 1
    if KEYS[9] and head.worker then lease(KEYS[9], tag, place_of(head.worker, head.lease_expires_at), digits(at_most + margin)) end
    if head.worker == '' then wait(head.lease_expires_at) end
    if KEYS[9] and head.owner_tag then
        local stem = opening .. 'owner:' .. head.owner_tag .. '}:'
        extend(stem .. 'tasks', stem .. 'expiry', now, margin, head.mark .. ' ' .. tag,
            digits(head.created_at + 1000 * at_most))
    end
end
if ARGV[9] ~= '' or status ~= head.status then refile(status) end
if ARGV[7] ~= '' then note('status', ARGV[13]) end
tell('t')
return {'ok', all()}
