-- Stores and publishes the result of a poll, and ends its lease. A state that comes late is older by its delay. The result
-- of an attempt that began before the last rejection of the key is not published. States are stored only under the epoch
-- that they are sealed for. Without shared polls nothing is published.
-- KEYS: channel, domain, poll; then the states of jobs
-- ARGV: token, epoch of the grant or '', epoch if there is none, landed message, left message, time of sending or '',
--       lifetime of the domain, accepted?, age of the attempt, epoch of the seals, polls?, lifetime of a domain that was
--       never accepted; then for each job: rung, final?, age, offset and length in the landed message, lifetime
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('HGET', KEYS[3], 't') == ARGV[1] then redis.call('DEL', KEYS[3]) end
local delay = ARGV[6] == '' and 0 or math.max(now - tonumber(ARGV[6]), 0)
local began = now - tonumber(ARGV[9]) - delay
local domain = redis.call('HMGET', KEYS[2], 'e', 'd', 'a')
local epoch = domain[1]
if (ARGV[2] ~= '' and ARGV[2] ~= epoch) or (domain[2] and began <= tonumber(domain[2])) then
    redis.call('SPUBLISH', KEYS[1], ARGV[5])
    return {'D', now}
end
if not epoch then
    epoch = ARGV[3]
    redis.call('HSET', KEYS[2], 'e', epoch)
    redis.call('PEXPIRE', KEYS[2], ARGV[12])
end
if ARGV[8] == '1' then
    redis.call('HSET', KEYS[2], 'a', string.format('%.0f', math.max(began, tonumber(domain[3] or '') or 0)))
end
if ARGV[8] == '1' or domain[3] then
    redis.call('PEXPIRE', KEYS[2], ARGV[7])
else
    redis.call('PEXPIRE', KEYS[2], ARGV[12], 'GT')
end
for n = 4, epoch == ARGV[10] and #KEYS or 3 do
    local a = 13 + (n - 4) * 6
    local rung, at = tonumber(ARGV[a]), now - tonumber(ARGV[a + 2]) - delay
    local known = redis.call('GETRANGE', KEYS[n], 0, 41)
    local known_rung, known_at = tonumber(known:sub(1, 3)), tonumber(known:sub(5, 18))
    local lower = #known == 42 and known:sub(19) == epoch
        and (known_rung > rung or (known_rung == rung and known_at > at))
    if not lower then
        local from = tonumber(ARGV[a + 3])
        local value = string.format('%03d%s%014.0f', rung, ARGV[a + 1], math.max(at, 0)) .. epoch
            .. ARGV[4]:sub(from + 1, from + tonumber(ARGV[a + 4]))
        redis.call('SET', KEYS[n], value, 'PX', ARGV[a + 5])
    end
end
if ARGV[11] == '1' then
    redis.call('SPUBLISH', KEYS[1], ARGV[4] .. epoch .. string.format('%014.0f', delay))
end
return {'D', now}
