-- Return the time in microseconds since 1970: the one that was given, or the server's when that is empty.
local function time(given)
    if given ~= '' then return given end
    local parts = redis.call('TIME')
    return parts[1] .. string.format('%06d', parts[2])
end

local function digits(number) return string.format('%.0f', number) end
