-- A mailbox may exist without its task, where tasks are kept elsewhere. That of an expired task is empty.
local function done(value) return {'ok', value, expired and head.owner, expired and head.mark} end
