-- The tasks that have waited longest for a worker of some tools. Records are not read where they may live in another
-- slot of a cluster: then ARGV 3 and 4 are empty. A record that cannot be read is `false`, and hurts no other.
-- KEYS: the waiting tasks of each tool. ARGV: now; limit; how a record's key begins and ends.
local now = time(ARGV[1])
local first = {}
for number, key in ipairs(KEYS) do
    local found = redis.call('ZRANGEBYSCORE', key, '-inf', now, 'WITHSCORES', 'LIMIT', 0, ARGV[2])
    for at = 1, #found, 2 do first[#first + 1] = {found[at], found[at + 1], false, number} end
end
table.sort(first, function(one, other) return tonumber(one[2]) < tonumber(other[2]) end)
local page = {}
for number = 1, math.min(#first, ARGV[2]) do
    local entry = first[number]
    if ARGV[3] ~= '' then
        local record = redis.pcall('HMGET', ARGV[3] .. entry[1] .. ARGV[4], unpack(FIELDS))
        if not record.err then entry[3] = record end
    end
    page[number] = entry
end
return {now, page}
