-- Store a task; on a single server also its entries in the indexes, in the same step.
-- ARGV 5-: member of the owner's index; name of the tool; milliseconds to keep it, or empty; milliseconds until it
-- can expire at the latest, or empty; milliseconds that its lease lasts, or empty; on a single server live tasks that
-- its owner may have, or empty; fields and values.
if head.v and not expired then
    if head.mark == op then return {'ok', head.created_at} end
    return {'taken'}
end
local member, name, left, at_most, lasts = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
if ARGV[10] ~= '' and KEYS[9] then
    local owner
    for number = 11, #ARGV, 2 do
        if ARGV[number] == 'owner' then owner = ARGV[number + 1] end
    end
    local live = opening .. 'search:}:live:' .. owner_in_search(owner)
    redis.call('ZREMRANGEBYSCORE', live, '-inf', now)
    if redis.call('ZCARD', live) >= tonumber(ARGV[10]) then return {'full'} end
end
local latest, lapses = '', ''
if at_most ~= '' then latest = digits(now + 1000 * at_most) end
if lasts ~= '' then
    lapses = digits(now + 1000 * lasts)
    redis.call('HSET', KEYS[1], 'lease_expires_at', lapses)
end
redis.call('HSET', KEYS[1], 'created_at', now, 'last_updated_at', now, unpack(ARGV, 11))
if redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[4]) > 0 then
    for number = 1, 8 do redis.call('PERSIST', KEYS[number]) end
    if left ~= '' then keep(left) end
elseif left ~= '' then
    redis.call('PEXPIRE', KEYS[1], left)
end
if KEYS[9] then
    index(KEYS[10], KEYS[11], now, margin, member, latest)
    if lapses ~= '' then
        local worker = redis.call('HGET', KEYS[1], 'worker')
        lease(KEYS[9], tag, place_of(worker, lapses), at_most == '' and '' or at_most + margin)
        if worker == '' then
            put(KEYS[9] .. ':waiting:' .. tag_of_tool(name), lapses, tag, now, latest, margin)
            ring()
        end
    end
    local task = redis.call('HMGET', KEYS[1], 'task_id', 'ttl_ms', 'retention_ms', 'owner')
    local entry, name_tag = entry_for(tag, name, task[4], string.sub(tag, 1, 1) == '~' and task[1] or nil)
    if redis.call('ZSCORE', opening .. 'search:}:all', entry) then unfile(opening .. 'search:}:', entry) end
    task = {created_at = now, ttl_ms = task[2], retention_ms = task[3]}
    file(opening .. 'search:}:', entry, name_tag, name, 'working', false, now, task, margin)
end
return {'ok', now, expired and head.owner, expired and head.mark}
