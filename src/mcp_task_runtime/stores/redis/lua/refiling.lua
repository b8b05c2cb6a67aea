-- For scripts about a task that the search index must follow.
local function entry_of()
    local id = string.sub(tag, 1, 1) == '~' and redis.call('HGET', KEYS[1], 'task_id')
    return entry_for(tag, tool(), head.owner, id or nil)
end
local function refile(status, is_error) -- on a single server: move the task in the search index
    if not KEYS[9] then return end
    local entry, name_tag, name = entry_of()
    file(opening .. 'search:}:', entry, name_tag, name, status, is_error, now, head, margin)
end
