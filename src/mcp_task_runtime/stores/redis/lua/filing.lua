-- The search index of all owners' tasks; its keys begin with `search`. An entry is the tag of a task, its tool's and
-- its owner's, and where the first is a digest also the beginning of the identifier, in hexadecimal digits.
local function owner_in_search(owner) return owner and string.sub(redis.sha1hex(owner), 1, 12) or '-' end

local function entry_for(tag, name, owner, id)
    local name_tag = tag_of_tool(name)
    local entry = tag .. ' ' .. name_tag .. ' ' .. owner_in_search(owner)
    if id then
        local digits_of = function(byte) return string.format('%02x', string.byte(byte)) end
        entry = entry .. ' ' .. string.gsub(string.sub(id, 1, 128), '.', digits_of)
    end
    return entry, name_tag, name
end

local function id_member(entry) -- what stands for it in the index of identifiers
    local tag, id = string.match(entry, '^(%S+) %S+ %S+ ?(.*)$')
    if string.sub(tag, 1, 1) ~= '~' then
        id = tag
    else
        id = string.gsub(id, '..', function(two) return string.char(tonumber(two, 16)) end)
    end
    return id .. '\0' .. entry
end

local function unfile(search, entry)
    redis.call('ZREM', search .. 'all', entry)
    redis.call('ZREM', search .. 'expiry', entry)
    redis.call('ZREM', search .. 'ids', id_member(entry))
    local name_tag, owner_tag = string.match(entry, '^%S+ (%S+) (%S+)')
    redis.call('ZREM', search .. 'owner:' .. owner_tag, entry)
    redis.call('ZREM', search .. 'live:' .. owner_tag, entry)
    local left = 0
    for _, status in ipairs(STATUSES) do
        local key = search .. status .. ':' .. name_tag
        redis.call('ZREM', key, entry)
        left = left + redis.call('ZCARD', key)
    end
    redis.call('ZREM', search .. 'error:' .. name_tag, entry)
    if left == 0 then redis.call('HDEL', search .. 'names', name_tag) end
end

local function purge(search, now, most)
    local due = redis.call('ZRANGEBYSCORE', search .. 'expiry', '-inf', now, 'LIMIT', 0, most)
    for _, entry in ipairs(due) do unfile(search, entry) end
end

-- Say in which status a task is, and whether it completed with an error; `task` has its `created_at`, `ttl_ms` and
-- `retention_ms`.
local function file(search, entry, name_tag, name, status, is_error, now, task, margin)
    local latest = ''
    if task.ttl_ms then latest = digits(task.created_at + 1000 * (task.ttl_ms + task.retention_ms + 1)) end
    local place = redis.call('ZSCORE', search .. 'all', entry)
    if not place then
        purge(search, now, 8)
        place = task.created_at
        while redis.call('ZCOUNT', search .. 'all', place, place) > 0 do
            local last = redis.call('ZREVRANGE', search .. 'all', 0, 0, 'WITHSCORES')
            place = digits(math.max(last[2], place) + 1)
        end
    end
    put(search .. 'all', place, entry, now, latest, margin)
    put(search .. 'ids', 0, id_member(entry), now, latest, margin)
    local owner_tag = string.match(entry, '^%S+ %S+ (%S+)')
    put(search .. 'owner:' .. owner_tag, place, entry, now, latest, margin)
    if status == 'working' or status == 'input_required' then
        local ends = 'inf'
        if task.ttl_ms then ends = digits(task.created_at + 1000 * task.ttl_ms) end
        put(search .. 'live:' .. owner_tag, ends, entry, now, latest, margin)
    else
        redis.call('ZREM', search .. 'live:' .. owner_tag, entry)
    end
    for _, other in ipairs(STATUSES) do
        if other ~= status then redis.call('ZREM', search .. other .. ':' .. name_tag, entry) end
    end
    put(search .. status .. ':' .. name_tag, place, entry, now, latest, margin)
    if is_error then put(search .. 'error:' .. name_tag, place, entry, now, latest, margin) end
    if latest == '' then
        redis.call('ZREM', search .. 'expiry', entry)
    else
        put(search .. 'expiry', latest, entry, now, latest, margin)
    end
    local left = redis.call('PTTL', search .. 'names')
    redis.call('HSET', search .. 'names', name_tag, name)
    local all_left = redis.call('PTTL', search .. 'all')
    if all_left == -1 then
        redis.call('PERSIST', search .. 'names')
    elseif left ~= -1 and all_left > left then
        redis.call('PEXPIRE', search .. 'names', all_left)
    end
end
