-- Marks the stored states of a job, or all of them, as removed, and publishes a message.
-- KEYS: channel, mark
-- ARGV: message, lifetime of the mark
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[2], string.format('%.0f', now), 'PX', ARGV[2])
redis.call('SPUBLISH', KEYS[1], ARGV[1])
return {'D', now}
