#!lua flags=allow-oom
-- A connection has ended: keep what its client has confirmed, and drop its pending entries.
-- KEYS 1 log
-- ARGV 1 consumer (the group)  2 connection (its member)  3 the confirmed offset  4 keep ('1' or '0')
-- Returns 1, or 0 when a newer connection has taken the consumer over, whether it is still there or has
-- left: then it loses nothing, and is given again what a last read of the older one took.
-- Atomic, because a newer connection may attach between the look and the write.
local last = '-18446744073709551615'
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  if group[2] == ARGV[1] then
    local mine, others = false, false
    for _, member in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
      if member[2] == ARGV[2] then
        mine = true
      else
        others = true
      end
    end
    if others and mine then
      -- Replaced, and back by a read that was on its way: what that read took is given to the newer one.
      local taken = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])[1]
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
      if taken then
        -- As in attach: 0 when it cannot be known where the group was.
        local entry = redis.call('XRANGE', KEYS[1], taken[1], taken[1])[1]
        local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
        local known_start = entry and first[1] ~= taken[1]
        local start = known_start and tonumber(string.match(taken[1], '^%d+')) - #entry[2][2] or 0
        redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], string.format('%.0f', start) .. last)
      end
    end
    if others or not mine then
      return 0
    end
    if ARGV[4] == '0' then
      return redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
    end
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
    redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], ARGV[3] .. last)
    return 1
  end
end
return 0
