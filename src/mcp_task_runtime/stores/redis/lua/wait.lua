-- Enter tasks in what waits for a worker of their tool, and move them in the index of leases to those that wait, unless
-- they were moved otherwise meanwhile.
-- KEYS: index of leases, then the tool's waiting tasks, for each task. ARGV: now, margin, then for each task its tag, the
-- time at which its lease lapses and the one at which it expires, or empty.
local now = time(ARGV[1])
for number = 1, #KEYS - 1 do
    local tag, lapses, latest = unpack(ARGV, 3 * number, 3 * number + 2)
    put(KEYS[number + 1], lapses, tag, now, latest, ARGV[2])
    local score = redis.call('ZSCORE', KEYS[1], tag)
    if score and tonumber(score) == tonumber(lapses) then redis.call('ZADD', KEYS[1], place_of('', lapses), tag) end
end
return 1
