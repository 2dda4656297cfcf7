-- Marks the stored states of a job, of a key, or all of them, as removed, and publishes a message. The log keeps the last
-- 1,024 messages of a shard for replicas that do not hear them: field n is their number, the others are the messages.
-- KEYS: channel, mark, log
-- ARGV: message, lifetime of the mark, field of the mark in the record of a key or ''
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[3] == '' then
    redis.call('SET', KEYS[2], string.format('%.0f', now), 'PX', ARGV[2])
elseif redis.call('HGET', KEYS[2], 'e') then
    -- Without an epoch no state of the key is valid.
    redis.call('HSET', KEYS[2], ARGV[3], string.format('%.0f', now))
end
local n = tonumber(redis.call('HGET', KEYS[3], 'n') or '') or 0
redis.call('HSET', KEYS[3], 'n', n + 1, n % 1024, string.format('%014.0f', now) .. ARGV[1])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
redis.call('SPUBLISH', KEYS[1], ARGV[1])
return {'D', now}
