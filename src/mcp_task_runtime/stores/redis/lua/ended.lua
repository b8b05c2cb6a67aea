-- Which of some tasks have ended or are gone. KEYS: records. ARGV: statuses of tasks that have not ended.
local ended = {}
for number, key in ipairs(KEYS) do
    local status = redis.pcall('HGET', key, 'status')
    if type(status) ~= 'string' or not string.find(ARGV[1], ' ' .. status .. ' ', 1, true) then
        ended[#ended + 1] = number
    end
end
return ended
