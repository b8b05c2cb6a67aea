local entry = entry_of()
forget()
return {'ok', head.owner, head.mark, entry}
