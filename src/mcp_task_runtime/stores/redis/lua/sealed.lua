local function is_sealed(request) -- whether the arguments of a task are sealed; a request that is damaged is not
    if not request or not string.find(request, 'sealed:', 1, true) then return false end
    local is_read, parts = pcall(cjson.decode, request)
    return is_read and type(parts) == 'table' and type(parts[3]) == 'string'
        and string.sub(parts[3], 1, #SEALED) == SEALED
end
