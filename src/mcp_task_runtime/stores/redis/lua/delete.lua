local entry = entry_of()
if KEYS[9] then unfile(opening .. 'search:}:', entry) end
forget()
return {'ok', head.owner, head.mark, entry}
