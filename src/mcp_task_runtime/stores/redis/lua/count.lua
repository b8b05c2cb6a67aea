-- KEYS: any key of the search index. ARGV: now; beginning of the index's keys; how a record's key begins and ends, or
-- empty. Of each status and tool, and of those that completed with an error: status or `error`, tool, number, tag and
-- creation of the oldest.
purge(ARGV[2], time(ARGV[1]), 100)
local counts = {}
local names = redis.call('HGETALL', ARGV[2] .. 'names')
for number = 1, #names, 2 do
    local errors = redis.call('ZCARD', ARGV[2] .. 'error:' .. names[number])
    if errors > 0 then counts[#counts + 1] = {'error', names[number + 1], errors, false, false} end
    for _, status in ipairs(STATUSES) do
        local key = ARGV[2] .. status .. ':' .. names[number]
        local count = redis.call('ZCARD', key)
        if count > 0 then
            local oldest = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
            local tag, created = string.match(oldest[1], '^%S+'), false
            if ARGV[3] ~= '' then
                created = redis.pcall('HGET', ARGV[3] .. tag .. ARGV[4], 'created_at')
                if type(created) ~= 'string' then created = oldest[2] end
            end
            counts[#counts + 1] = {status, names[number + 1], count, tag, created}
        end
    end
end
return counts
