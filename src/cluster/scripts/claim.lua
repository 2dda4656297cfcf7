-- Answers with known states, the lease of a sibling, or a new lease.
-- KEYS: channel, members, domain, poll, removal of all, pause; then for each job: state, removal of its id, its last change
-- ARGV: me, token, epoch if there is none, lease, known?, look?, goal, greatest age, recheck interval, takeover,
--       lease time, lifetime of the domain, suspected holder, attached message, taken message, polls?,
--       token of the lease that the claim follows, lifetime of a domain that was never accepted
-- A beat that is further ahead than the takeover is of a clock that went back: its replica counts as unknown.
local me, token, fresh, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local goal, max_age, recheck = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local takeover, lasts = tonumber(ARGV[10]), tonumber(ARGV[11])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if not redis.call('ZSCORE', KEYS[2], me) then return {'F'} end
local domain = redis.call('HMGET', KEYS[3], 'e', 'a', 'c')
local epoch = domain[1]
if not epoch then
    epoch = fresh
    redis.call('HSET', KEYS[3], 'e', epoch)
    redis.call('PEXPIRE', KEYS[3], ARGV[18])
elseif domain[2] then
    redis.call('PEXPIRE', KEYS[3], ARGV[12])
else
    redis.call('PEXPIRE', KEYS[3], ARGV[18], 'GT')
end
-- The holder of another lease than this one hears that the replica does not wait for it.
local follows = ARGV[15] ~= '' and redis.call('HGET', KEYS[4], 't') ~= ARGV[17]

if ARGV[5] == '1' and domain[2] and now - domain[2] <= recheck and #KEYS > 6 then
    local all = math.max(tonumber(redis.call('GET', KEYS[5]) or '-1'), tonumber(domain[3] or '-1'))
    local found = {'K', epoch}
    for n = 7, #KEYS, 3 do
        local head = redis.call('GETRANGE', KEYS[n], 0, 41)
        if #head < 42 or head:sub(19) ~= epoch then found = nil break end
        local rung, at = tonumber(head:sub(1, 3)), tonumber(head:sub(5, 18))
        local removed = math.max(all, tonumber(redis.call('GET', KEYS[n + 1]) or '-1'),
            tonumber(redis.call('GET', KEYS[n + 2]) or '-1'))
        local reached = goal == 0 or (goal > 0 and rung >= goal)
        local fresh_enough = head:sub(4, 4) == '1' or (reached and max_age > 0 and now - at <= max_age)
        if at <= removed or not fresh_enough then found = nil break end
        found[#found + 1] = math.max(now - at, 0)
    end
    if found then
        if follows then redis.call('SPUBLISH', KEYS[1], ARGV[15]) end
        for n = 7, #KEYS, 3 do
            found[#found + 1] = redis.call('GETRANGE', KEYS[n], 42, -1)
        end
        return found
    end
end

local shares_polls = ARGV[16] == '1'
local held = shares_polls and redis.call('HMGET', KEYS[4], 'h', 's', 'u', 'e', 'l') or {}
if held[1] and held[1] ~= me and held[1] ~= ARGV[13] and held[4] == epoch and tonumber(held[3]) > now then
    local beat = redis.call('ZSCORE', KEYS[2], held[1])
    if beat and beat + takeover > now and beat - takeover <= now then
        redis.call('HSET', KEYS[4], 'g' .. me, '')
        redis.call('SPUBLISH', KEYS[1], ARGV[14] .. held[5])
        if follows then redis.call('SPUBLISH', KEYS[1], ARGV[15]) end
        return {'H', epoch, held[5], math.max(now - held[2], 0)}
    end
end
if ARGV[6] == '1' then return {'V'} end
if shares_polls then
    redis.call('DEL', KEYS[4])
    redis.call('HSET', KEYS[4], 'h', me, 't', token, 's', now, 'u', now + lasts, 'e', epoch, 'l', lease)
    redis.call('PEXPIRE', KEYS[4], lasts)
end
if ARGV[15] ~= '' then redis.call('SPUBLISH', KEYS[1], ARGV[15]) end
local pause = redis.call('GET', KEYS[6]) or ''
local ends = tonumber(pause:sub(1, 14)) or 0
if ends > now then return {'G', epoch, ends - now, pause:sub(15)} end
return {'G', epoch}
