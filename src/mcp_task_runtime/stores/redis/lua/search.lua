-- A page of tasks by place, merged from sorted sets, and their records where those are in reach.
-- KEYS: any key of the search index.
-- ARGV: now; beginning of the index's keys; tags of owners, or empty; statuses, or empty; tags of tools, or empty, each
-- list separated by spaces; place and entry that the page begins behind, or empty; lowest and highest place; 1 for the
-- newest first; most entries to look at; prefix of the identifier, or empty; how a record's key begins and ends, or empty;
-- 1 for those alone that completed with an error; what the status message contains, in lower case, or empty.
local search, owners, statuses, names = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local from, behind, lowest, highest = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local newest, limit, prefix = ARGV[10] == '1', tonumber(ARGV[11]), ARGV[12]
local found = {} -- of {place, entry}

local function words(text, default)
    local list = {}
    for word in string.gmatch(text, '%S+') do list[#list + 1] = word end
    return #list > 0 and list or default()
end
local function is_behind(place, entry)
    if from == '' then return true end
    local a, b = tonumber(place), tonumber(from)
    if a ~= b then return newest and a < b or not newest and a > b end
    return newest and entry < behind or not newest and entry > behind
end
local function is_before(a, b)
    if a[1] ~= b[1] then return newest and a[1] > b[1] or not newest and a[1] < b[1] end
    return newest and a[2] > b[2] or not newest and a[2] < b[2]
end
local function take(place, entry)
    if is_behind(place, entry) then found[#found + 1] = {tonumber(place), entry} end
end
local function scan(key) -- an entry at the place of the cursor may have been shown
    local page
    if newest then
        local top = from ~= '' and from or highest
        page = redis.call('ZREVRANGEBYSCORE', key, top, lowest, 'WITHSCORES', 'LIMIT', 0, limit + 1)
    else
        local bottom = from ~= '' and from or lowest
        page = redis.call('ZRANGEBYSCORE', key, bottom, highest, 'WITHSCORES', 'LIMIT', 0, limit + 1)
    end
    for number = 1, #page, 2 do take(page[number + 1], page[number]) end
end

local function named(first, last) -- all whose identifier begins so
    for _, member in ipairs(redis.call('ZRANGEBYLEX', search .. 'ids', first, last)) do
        local entry = string.match(member, '^.*%z(.*)$')
        local place = tonumber(redis.call('ZSCORE', search .. 'all', entry) or '')
        if place and place >= tonumber(lowest) and place <= tonumber(highest) then take(place, entry) end
    end
end

purge(search, time(ARGV[1]), 100)
local first, last = '[' .. prefix, '[' .. prefix .. '\255'
local few = math.max(1000, math.sqrt(50 * redis.call('ZCARD', search .. 'all'))) -- to sort costs less than to scan
if prefix ~= '' and redis.call('ZLEXCOUNT', search .. 'ids', first, last) <= few then
    named(first, last)
elseif ARGV[15] == '1' then
    local tools = words(names, function() return redis.call('HKEYS', search .. 'names') end)
    for _, tool in ipairs(tools) do scan(search .. 'error:' .. tool) end
elseif owners ~= '' then
    for _, owner in ipairs(words(owners)) do scan(search .. 'owner:' .. owner) end
elseif statuses == '' and names == '' then
    scan(search .. 'all')
else
    local tools = words(names, function() return redis.call('HKEYS', search .. 'names') end)
    for _, status in ipairs(words(statuses, function() return STATUSES end)) do
        for _, tool in ipairs(tools) do scan(search .. status .. ':' .. tool) end
    end
end
table.sort(found, is_before)
local wanted_names = ' ' .. names .. ' '
local function may_match(entry) -- as far as the entry itself says
    if prefix ~= '' and string.sub(id_member(entry), 1, #prefix) ~= prefix then return false end
    return names == '' or string.find(wanted_names, ' ' .. string.match(entry, '^%S+ (%S+)') .. ' ', 1, true)
end
local is_of_any_status = statuses == '' or owners == '' and prefix == ''
local function says(key) -- looked at here, so that most records need not be read
    if not is_of_any_status then
        local status = redis.pcall('HGET', key, 'status')
        if type(status) == 'string' and not string.find(' ' .. statuses .. ' ', ' ' .. status .. ' ', 1, true) then
            return false
        end
    end
    if ARGV[16] == '' then return true end
    local message = redis.pcall('HGET', key, 'status_message')
    return type(message) ~= 'string' and message or message and string.find(string.lower(message), ARGV[16], 1, true)
end
local page, count = {}, math.min(limit, #found)
for number = 1, count do
    local place, entry = digits(found[number][1]), found[number][2]
    if may_match(entry) then
        local record, key = false, ARGV[13] .. string.match(entry, '^%S+') .. ARGV[14]
        if ARGV[13] == '' or says(key) then
            if ARGV[13] ~= '' then
                record = redis.pcall('HMGET', key, unpack(FIELDS))
                if record.err then record = false end
            end
            page[#page + 1] = {entry, place, record}
        end
    end
end
local end_of_page = found[count] and {digits(found[count][1]), found[count][2]}
return {time(ARGV[1]), page, count, end_of_page}
