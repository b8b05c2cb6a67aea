-- For scripts that need a task: reply at once if there is none.
if not head.v then return {'absent'} end
if expired then return {'expired', head.owner, head.mark} end
