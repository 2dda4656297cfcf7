-- Records that a replica lives, and publishes a message. Answers F if the engine should know the replica and did not.
-- KEYS: channel, members
-- ARGV: me, former name or '', message, '1' after a beat or an adoption of this link in this shard
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[2] ~= '' then redis.call('ZREM', KEYS[2], ARGV[2]) end
local added = redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 3600000)
redis.call('PEXPIRE', KEYS[2], 3600000)
redis.call('SPUBLISH', KEYS[1], ARGV[3])
return {added == 1 and ARGV[4] == '1' and 'F' or 'D', now}
