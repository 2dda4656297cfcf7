-- Takes the lease of a poll that a replica makes already, if no living sibling has it, and the key was not rejected since
-- its attempt began. Counts as a beat. Answers F if the engine should know the replica and does not. A beat that is further
-- ahead than the takeover is of a clock that went back: its replica counts as unknown.
-- KEYS: channel, members, domain, poll
-- ARGV: me, token, epoch if there is none, lease, age, takeover, lease time, lifetime of the domain, polls?,
--       age of the attempt, before the first beat?, lifetime of a domain that was never accepted
local me, token, takeover = ARGV[1], ARGV[2], tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[11] ~= '1' and not redis.call('ZSCORE', KEYS[2], me) then return {'F'} end
redis.call('ZADD', KEYS[2], now, me)
redis.call('PEXPIRE', KEYS[2], 3600000)
local domain = redis.call('HMGET', KEYS[3], 'e', 'd', 'a')
local epoch = domain[1]
if not epoch then
    epoch = ARGV[3]
    redis.call('HSET', KEYS[3], 'e', epoch)
    redis.call('PEXPIRE', KEYS[3], ARGV[12])
elseif domain[3] then
    redis.call('PEXPIRE', KEYS[3], ARGV[8])
else
    redis.call('PEXPIRE', KEYS[3], ARGV[12], 'GT')
end
if ARGV[9] ~= '1' then return {'A', epoch, 1} end
if domain[2] and now - tonumber(ARGV[10]) <= tonumber(domain[2]) then return {'A', epoch, 0} end
local held = redis.call('HMGET', KEYS[4], 'h', 't', 'u', 'e')
if held[1] and held[2] ~= token and held[4] == epoch and tonumber(held[3]) > now then
    local beat = redis.call('ZSCORE', KEYS[2], held[1])
    if beat and beat + takeover > now and beat - takeover <= now then return {'A', epoch, 0} end
end
local answer = {'A', epoch, 1}
if held[2] == token then
    for _, field in ipairs(redis.call('HKEYS', KEYS[4])) do
        if #field == 17 then answer[#answer + 1] = field:sub(2) end
    end
else
    redis.call('DEL', KEYS[4])
end
local started = now - tonumber(ARGV[5])
local ends = started + tonumber(ARGV[7])
redis.call('HSET', KEYS[4], 'h', me, 't', token, 's', started, 'u', ends, 'e', epoch, 'l', ARGV[4])
redis.call('PEXPIRE', KEYS[4], math.max(ends - now, 1))
return answer
