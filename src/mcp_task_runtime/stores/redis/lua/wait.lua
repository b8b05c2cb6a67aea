-- Enter tasks in what waits for a worker of their tool.
-- KEYS: the tool's waiting tasks, for each task. ARGV: now, margin, then for each task its tag, the time at which its
-- lease lapses and the one at which it expires, or empty.
local now = time(ARGV[1])
for number, key in ipairs(KEYS) do
    put(key, ARGV[3 * number + 1], ARGV[3 * number], now, ARGV[3 * number + 2], ARGV[2])
end
return 1
