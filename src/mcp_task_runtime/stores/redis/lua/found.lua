-- For scripts that read a task: reply at once if there is none.
if not version then return {'absent'} end
if expired then return {'expired', owner, mark} end
