-- The task that a script is about, as it stands: `head` holds some of its fields by name.
-- KEYS: record, queue, asked, answers, taken, waiting, events, steps, and on a single server the index of leases.
-- ARGV: now (empty for the server's time), operation, channel, margin, then the script's own arguments.
local now, op, channel, margin = time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local head = {}
for number, value in ipairs(redis.call('HMGET', KEYS[1], unpack(HEAD))) do head[HEAD[number]] = value end
if head.v and tonumber(head.v) > SCHEMA then return {'schema', head.v} end

local function all() return redis.call('HMGET', KEYS[1], unpack(FIELDS)) end
local function tell(what) redis.call('PUBLISH', channel, what) end
local function later(a, b) if tonumber(a) > tonumber(b) then return a end return b end
local function keep(ms)
    for number = 1, 8 do redis.call('PEXPIRE', KEYS[number], digits(math.min(tonumber(ms), 1e14))) end
end
local function fit(first, last, unowned) -- let keys expire with the task
    local left = redis.call('PTTL', KEYS[1])
    if left == -2 then left = tonumber(unowned) end
    for number = first, last do
        if left == -1 then
            redis.call('PERSIST', KEYS[number])
        else
            redis.call('PEXPIRE', KEYS[number], math.max(left, 1))
        end
    end
end

local function note(kind, text, at) -- add to the task's history, at the time of its last change
    local event = (at or later(now, head.last_updated_at)) .. ' ' .. kind
    if text then event = event .. ' ' .. text end
    if redis.call('RPUSH', KEYS[7], event) == 1 then fit(7, 7) end
    redis.call('LTRIM', KEYS[7], -EVENTS, -1)
end
local function run_of(worker, attempt) return worker .. '#' .. attempt end
local function is_fenced(worker, attempt) -- whether a run does not hold the task's lease
    return worker ~= '' and (head.worker ~= string.sub(worker, 2) or head.attempt ~= attempt)
end
local function is_in(statuses) return string.find(statuses, ' ' .. head.status .. ' ', 1, true) end

local opening, tag = string.match(channel, '^(.*:{)([^}]*)}$')
local function tool() -- the name of the task's tool
    local request = not head.name and tonumber(head.v) < 2 and redis.call('HGET', KEYS[1], 'request')
    return head.name or request and cjson.decode(request)[2] or ''
end
local function ring() if KEYS[9] then redis.call('PUBLISH', KEYS[9], 'w') end end -- wake those that wait for work
local function unlease() if KEYS[9] then redis.call('ZREM', KEYS[9], tag) end end
local function relapse(worker, lapses)
    if KEYS[9] then redis.call('ZADD', KEYS[9], 'XX', place_of(worker, lapses), tag) end
end
local function wait(lapses) -- enter the task in what waits for a worker of its tool, as long as it can live
    if not KEYS[9] then return end
    local latest = head.ttl_ms and digits(head.created_at + 1000 * head.ttl_ms) or ''
    put(KEYS[9] .. ':waiting:' .. tag_of_tool(tool()), lapses, tag, now, latest, margin)
end
local function unwait()
    if KEYS[9] and head.worker == '' then redis.call('ZREM', KEYS[9] .. ':waiting:' .. tag_of_tool(tool()), tag) end
end
local function tell_end() -- to those that watch its end, and to the stores that made and claimed it, but for this one
    tell('x')
    local told = {[string.match(op, '^(.+)%.') or ''] = true}
    for _, operation in ipairs({head.mark or '', head.claim or ''}) do
        local store = string.match(operation, '^(.+)%.')
        if store and not told[store] then
            told[store] = true
            redis.call('PUBLISH', opening .. 'store:' .. store .. '}', tag)
        end
    end
end
local function forget()
    unwait()
    unlease()
    redis.call('DEL', unpack(KEYS, 1, 8))
    tell_end()
end

local expired = head.v and head.ttl_ms
    and tonumber(now) >= tonumber(head.created_at) + 1000 * tonumber(head.ttl_ms)
if expired then forget() end
