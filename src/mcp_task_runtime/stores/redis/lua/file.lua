-- Move a task in the search index, on a cluster.
-- KEYS: any key of the index. ARGV: now, margin, beginning of the index's keys, tag, tool, `+` and identifier, or empty,
-- status, created_at, TTL or empty, retention, `+` and owner, or empty, 1 if the task completed with an error.
local owner = ARGV[11] ~= '' and string.sub(ARGV[11], 2)
local entry, name_tag, name = entry_for(ARGV[4], ARGV[5], owner, ARGV[6] ~= '' and string.sub(ARGV[6], 2))
local task = {created_at = ARGV[8], ttl_ms = ARGV[9] ~= '' and ARGV[9], retention_ms = ARGV[10]}
return file(ARGV[3], entry, name_tag, name, ARGV[7], ARGV[12] == '1', time(ARGV[1]), task, ARGV[2])
