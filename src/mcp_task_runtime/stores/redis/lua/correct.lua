-- KEYS: index. ARGV, three for each entry: tag, the score that was found wrong, the right one or empty.
for number = 1, #ARGV, 3 do
    local score = redis.call('ZSCORE', KEYS[1], ARGV[number])
    if score and tonumber(score) == tonumber(ARGV[number + 1]) then
        if ARGV[number + 2] == '' then
            redis.call('ZREM', KEYS[1], ARGV[number])
        else
            redis.call('ZADD', KEYS[1], ARGV[number + 2], ARGV[number])
        end
    end
end
return 1
