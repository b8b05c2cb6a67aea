-- What the indexes have in common.
local function tag_of_tool(name) -- what stands for a tool in the names of keys
    if #name <= 64 and string.match(name, '^[%w_-]+$') then return name end
    return '~' .. redis.sha1hex(name)
end

local function place_of(worker, lapses) -- where a task stands in the index of leases
    if worker == '' then return digits(lapses - WAITS) end
    return lapses
end

local function put(key, score, member, now, latest, margin) -- add to a sorted set that expires with its last member
    local left = redis.call('PTTL', key)
    redis.call('ZADD', key, score, member)
    if latest == '' then
        redis.call('PERSIST', key)
    elseif left ~= -1 then
        local wanted = math.min(math.max(math.ceil((latest - now) / 1000) + margin, 1), 1e14)
        if wanted > left then redis.call('PEXPIRE', key, digits(wanted)) end
    end
end
