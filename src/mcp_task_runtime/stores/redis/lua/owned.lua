-- For scripts that read a task for its owner: one of another owner is an absent one, at the same cost (law L10).
-- ARGV: now, then the owner, which is missing for none.
if not version or owner ~= (ARGV[2] or false) then return {'absent'} end
