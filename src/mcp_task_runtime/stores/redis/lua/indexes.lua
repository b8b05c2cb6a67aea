-- The indexes that span tasks. An owner's index expires with the last of its tasks.
local function fit_index(tasks, expiry, now, margin)
    if redis.call('ZCARD', tasks) > redis.call('ZCARD', expiry) then
        redis.call('PERSIST', tasks)
        redis.call('PERSIST', expiry)
        return
    end
    local last = redis.call('ZREVRANGE', expiry, 0, 0, 'WITHSCORES')
    if last[2] then
        local left = math.max((last[2] - now) / 1000 + margin, 1)
        left = string.format('%.0f', math.min(math.ceil(left), 1e14))
        redis.call('PEXPIRE', tasks, left)
        redis.call('PEXPIRE', expiry, left)
    end
end

local function index(tasks, expiry, now, margin, member, latest)
    if redis.call('ZSCORE', tasks, member) then return end
    local due = redis.call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, 8)
    if #due > 0 then -- a few expired entries are removed for each new one
        redis.call('ZREM', tasks, unpack(due))
        redis.call('ZREM', expiry, unpack(due))
    end
    local last = redis.call('ZREVRANGE', tasks, 0, 0, 'WITHSCORES')
    local place = now
    if last[2] and tonumber(last[2]) >= tonumber(now) then place = string.format('%.0f', last[2] + 1) end
    redis.call('ZADD', tasks, place, member)
    if latest ~= '' then redis.call('ZADD', expiry, latest, member) end
    fit_index(tasks, expiry, now, margin)
end

local function lease(leases, tag, lapses, keep)
    local left, before = redis.call('PTTL', leases), tonumber(redis.call('ZSCORE', leases, tag) or -1)
    if before < 0 or tonumber(lapses) < before then redis.call('ZADD', leases, lapses, tag) end
    if keep == '' then
        redis.call('PERSIST', leases)
    elseif left ~= -1 and tonumber(keep) > left then
        redis.call('PEXPIRE', leases, keep)
    end
end

local function extend(tasks, expiry, now, margin, member, latest) -- the task may expire later than was said
    if redis.call('ZSCORE', tasks, member) then
        redis.call('ZADD', expiry, 'GT', latest, member)
        fit_index(tasks, expiry, now, margin)
    end
end
