-- For scripts that read a mailbox, which may exist without its task. That of an expired task is empty.
local function done(value) return {'ok', not expired and value, expired and owner, expired and mark} end
