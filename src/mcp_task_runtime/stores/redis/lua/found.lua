-- For scripts that read a task: reply at once if there is none. That costs what reading one does (law L10).
if not version then return {'absent', record(), redis.call('EXISTS', KEYS[2])} end
if expired then return {'expired', owner, mark} end
