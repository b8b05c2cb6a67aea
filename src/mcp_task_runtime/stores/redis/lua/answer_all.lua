-- ARGV 5-: statuses of tasks that have not ended; then for each answer `k` and key, answer, kind and text of the event.
if not is_in(ARGV[5]) then return {'none'} end
local taken, gone, count = {}, {}, 0
for number = 6, #ARGV, 4 do
    local key, answer = ARGV[number], ARGV[number + 1]
    local state = redis.call('HGET', KEYS[4], key)
    local kind, from, message = string.match(state or '', '^([qa])(%S+) (.*)$')
    if kind == 'q' then
        redis.call('HSET', KEYS[4], key, 'a' .. op .. ' ' .. answer)
        gone[message], count = true, count + 1
        taken[#taken + 1] = key
        note(ARGV[number + 2], ARGV[number + 3])
    elseif kind and from == op then
        taken[#taken + 1] = key
    end
end
if count == 0 then return {'ok', taken, all()} end

local function without_answered(list)
    local left = {}
    for _, message in ipairs(redis.call('LRANGE', KEYS[list], 0, -1)) do
        if not gone[message] then left[#left + 1] = message end
    end
    redis.call('DEL', KEYS[list])
    for first = 1, #left, 1000 do
        redis.call('RPUSH', KEYS[list], unpack(left, first, math.min(first + 999, #left)))
    end
    fit(list, list)
    return #left
end
without_answered(2)
local status = without_answered(3) > 0 and 'input_required' or 'working'
redis.call('HSET', KEYS[1], 'op', op, 'revision', digits(head.revision + 1),
    'status', status, 'last_updated_at', later(now, head.last_updated_at))
if status ~= head.status then refile(status) end
tell('t')
tell('a')
return {'ok', taken, all()}
