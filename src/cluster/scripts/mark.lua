-- Marks the stored states of a job, or all of them, as removed.
-- KEYS: mark
-- ARGV: lifetime of the mark
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], string.format('%.0f', now), 'PX', ARGV[1])
return {'D', now}
