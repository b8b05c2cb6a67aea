-- For scripts that read: what they read is gone if the task has expired. One that has is purged by another script.
-- KEYS: record, and what else is read. ARGV: now (empty for the server's time), then the script's own arguments.
local version, created_at, ttl_ms, owner, mark =
    unpack(redis.call('HMGET', KEYS[1], 'v', 'created_at', 'ttl_ms', 'owner', 'mark'))
if version and tonumber(version) > SCHEMA then return {'schema', version} end
local now = tonumber(time(ARGV[1]))
local expired = version and ttl_ms and now >= tonumber(created_at) + 1000 * tonumber(ttl_ms)
local function record() return redis.call('HMGET', KEYS[1], unpack(FIELDS)) end
