-- A page of an index, and what its entries name. Records are not read where they may live in another slot of a
-- cluster: then ARGV 5 and 6 are empty. A record that cannot be read is `false`, and hurts no other.
-- KEYS: index. ARGV: now; lowest score; highest score, empty for now and `waits` for those that have waited until now;
-- limit; how a record's key begins and ends.
local now = time(ARGV[1])
local highest = ARGV[3]
if highest == '' then highest = now end
if highest == 'waits' then highest = digits(now - WAITS) end
local found = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[2], highest, 'WITHSCORES', 'LIMIT', 0, ARGV[4])
local page = {}
for number = 1, #found, 2 do
    local record = false
    if ARGV[5] ~= '' then
        local tag = string.match(found[number], '[^ ]+$')
        record = redis.pcall('HMGET', ARGV[5] .. tag .. ARGV[6], unpack(FIELDS))
        if record.err then record = false end
    end
    page[#page + 1] = {found[number], found[number + 1], record}
end
return {now, page}
