-- Claim tasks that wait for a worker of some tools, the longest waiting first; on a single server alone.
-- KEYS: index of leases; what this operation took; the waiting tasks of each tool.
-- ARGV: now; operation; how a record's key begins; most tasks to take; worker; milliseconds; worker as in an event; 1 to
-- take sealed tasks; statuses of tasks that have not ended; milliseconds to know what was taken.
-- Returns the time, the tags and records of what was taken, those of what is damaged, and 1 if sealed tasks were left.
local now, op, opening, limit, worker = time(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local taken, damaged, seen, sealed = {}, {}, {}, 0

local function record(tag) return redis.call('HMGET', opening .. tag .. '}:task', unpack(FIELDS)) end

local before = redis.call('GET', KEYS[2])
if before then
    for tag in string.gmatch(before, '%S+') do taken[#taken + 1] = {tag, record(tag)} end
    return {now, taken, damaged, 0}
end

local function waits(tag, key, waiting) -- whether an entry stands for a task to take; one that is wrong is corrected
    local head = redis.pcall('HMGET', key, 'v', 'status', 'worker', 'lease_expires_at', 'attempt', 'revision',
        'last_updated_at', 'created_at', 'ttl_ms', 'request')
    if not head.err and not head[1] then
        redis.call('ZREM', waiting, tag)
        redis.call('ZREM', KEYS[1], tag)
        return nil
    end
    local is_whole = not head.err and tonumber(head[1]) and tonumber(head[1]) <= SCHEMA and head[2]
    for number = 4, 8 do is_whole = is_whole and (not head[3] or tonumber(head[number])) end
    if not is_whole or head[9] and not tonumber(head[9]) then
        damaged[#damaged + 1] = {tag, not head.err and record(tag)}
        redis.call('ZADD', waiting, digits(now + 60000000), tag)
        return nil
    end
    local is_over = head[9] and tonumber(now) >= tonumber(head[8]) + 1000 * tonumber(head[9])
    if is_over or head[3] ~= '' or not string.find(ARGV[9], ' ' .. head[2] .. ' ', 1, true) then
        redis.call('ZREM', waiting, tag)
        if is_over then redis.call('ZREM', KEYS[1], tag) end
        return nil
    end
    if tonumber(head[4]) > tonumber(now) then
        redis.call('ZADD', waiting, head[4], tag)
        return nil
    end
    if ARGV[8] ~= '1' and is_sealed(head[10]) then
        sealed = 1
        return nil
    end
    return head
end

local function take(tag, waiting)
    local key = opening .. tag .. '}:task'
    local head = waits(tag, key, waiting)
    if not head then return end
    local attempt, updated, lapses = digits(head[5] + 1), head[7], digits(now + 1000 * ARGV[6])
    if tonumber(now) > tonumber(updated) then updated = now end
    redis.call('HSET', key, 'op', op, 'claim', op, 'revision', digits(head[6] + 1), 'last_updated_at', updated,
        'worker', worker, 'lease_expires_at', lapses, 'attempt', attempt)
    local events = opening .. tag .. '}:events'
    if redis.call('RPUSH', events, updated .. ' claimed ' .. ARGV[7] .. '#' .. attempt) == 1 then
        local left = redis.call('PTTL', key)
        if left > 0 then redis.call('PEXPIRE', events, left) end
    end
    redis.call('LTRIM', events, -EVENTS, -1)
    redis.call('ZREM', waiting, tag)
    redis.call('ZADD', KEYS[1], 'XX', lapses, tag)
    redis.call('PUBLISH', opening .. tag .. '}', 't')
    taken[#taken + 1] = {tag, record(tag)}
end

local function look(most) -- at so many of each tool; return whether there are more
    local first, are_all = {}, true
    for number = 3, #KEYS do
        local found = redis.call('ZRANGEBYSCORE', KEYS[number], '-inf', now, 'WITHSCORES', 'LIMIT', 0, most)
        are_all = are_all and #found < 2 * most
        for at = 1, #found, 2 do
            if not seen[found[at]] then first[#first + 1] = {found[at], tonumber(found[at + 1]), KEYS[number]} end
        end
    end
    if #KEYS > 3 then table.sort(first, function(one, other) return one[2] < other[2] end) end
    for _, entry in ipairs(first) do
        if #taken == limit then break end
        seen[entry[1]] = true
        take(entry[1], entry[3])
    end
    return not are_all
end

local most = limit
while look(most) and #taken < limit and most < 1000 do most = most * 4 end -- behind what is sealed or wrong
if #taken > 0 then
    local tags = {}
    for number, one in ipairs(taken) do tags[number] = one[1] end
    redis.call('SET', KEYS[2], table.concat(tags, ' '), 'PX', ARGV[10])
end
return {now, taken, damaged, sealed}
