-- Users that share a device are in one cluster, and in no other. Tells how many devices are wrong, not which.
{{ config(tags=['full_scan']) }}

with

members as (

    select distinct
        user_id,
        cluster_id
    from {{ ref('account_links') }}

),

wrong as (

    select devices.masked_device_id
    from {{ ref('user_devices') }} as devices
    left join members on devices.user_id = members.user_id
    group by devices.masked_device_id
    having
        count(distinct devices.user_id) > 1
        and (count(distinct members.cluster_id) <> 1 or count(members.cluster_id) <> count(devices.user_id))

)

select count(*) as devices
from wrong
having count(*) > 0
