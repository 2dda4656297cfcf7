-- Marks the stored states of a job, or all of them, as removed, and publishes a message. The log keeps the last 1,024
-- messages of a shard for replicas that do not hear them: field n is their number, the others are the messages.
-- KEYS: channel, mark, log
-- ARGV: message, lifetime of the mark
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[2], string.format('%.0f', now), 'PX', ARGV[2])
local n = tonumber(redis.call('HGET', KEYS[3], 'n') or '') or 0
redis.call('HSET', KEYS[3], 'n', n + 1, n % 1024, string.format('%014.0f', now) .. ARGV[1])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
redis.call('SPUBLISH', KEYS[1], ARGV[1])
return {'D', now}
